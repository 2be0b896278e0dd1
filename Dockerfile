# docker build -t gensar . && docker run -p 8000:8000 -v ./films/model:/model:ro gensar
# A model of the Hub instead: docker run -p 8000:8000 gensar me/films --host 0.0.0.0
FROM python:3.12-slim AS build
WORKDIR /build
RUN python -m venv /venv
# First and alone: a plain `torch` brings several GB of CUDA libraries, which a CPU does not need.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN /venv/bin/pip install --no-cache-dir --index-url ${TORCH_INDEX} "torch>=2.13,<3"
COPY setup.cfg pyproject.toml README.md LICENSE ./
COPY gensar_hf gensar_hf
RUN /venv/bin/pip install --no-cache-dir ".[serve]"

FROM python:3.12-slim
RUN useradd --create-home --uid 1000 gensar
COPY --from=build /venv /venv
USER gensar
WORKDIR /home/gensar
ENV PATH=/venv/bin:$PATH HF_HOME=/home/gensar/.cache/huggingface TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1
EXPOSE 8000
HEALTHCHECK --start-period=60s --interval=15s --timeout=5s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
ENTRYPOINT ["gensar", "serve"]
CMD ["/model", "--host", "0.0.0.0"]
