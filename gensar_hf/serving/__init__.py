"""Serve a model over HTTP: `gensar serve`. Needs `pip install 'gensar-hf[serve]'`."""
