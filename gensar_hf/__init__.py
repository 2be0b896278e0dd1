"""GenSAR for Hugging Face: one generative model for search and recommendation.

Importing the package registers its models with the Auto classes, so that `AutoModelForSeq2SeqLM.from_pretrained` and
`AutoTokenizer.from_pretrained` load what it has trained.
"""

from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM, AutoTokenizer

from gensar_hf.decoding import Trie, TrieBeamSearch, TrieLogitsProcessor
from gensar_hf.embeddings.configuration_sasrec import SASRecConfig
from gensar_hf.embeddings.modeling_sasrec import SASRecModel
from gensar_hf.generator.configuration_gensar import GenSARConfig
from gensar_hf.generator.modeling_gensar import GenSARForConditionalGeneration
from gensar_hf.generator.tokenization_gensar import GenSARTokenizer
from gensar_hf.identifiers.configuration_joint_rqvae import JointRQVAEConfig
from gensar_hf.identifiers.identifier_table import IdentifierTable
from gensar_hf.identifiers.modeling_joint_rqvae import JointRQVAE
from gensar_hf.pipeline import GenSARPipeline

__all__ = [
    "GenSARConfig",
    "GenSARForConditionalGeneration",
    "GenSARPipeline",
    "GenSARTokenizer",
    "IdentifierTable",
    "JointRQVAE",
    "JointRQVAEConfig",
    "SASRecConfig",
    "SASRecModel",
    "Trie",
    "TrieBeamSearch",
    "TrieLogitsProcessor",
]

AutoConfig.register(GenSARConfig.model_type, GenSARConfig)
AutoModelForSeq2SeqLM.register(GenSARConfig, GenSARForConditionalGeneration)
AutoTokenizer.register(GenSARConfig, fast_tokenizer_class=GenSARTokenizer)
AutoConfig.register(SASRecConfig.model_type, SASRecConfig)
AutoModel.register(SASRecConfig, SASRecModel)
AutoConfig.register(JointRQVAEConfig.model_type, JointRQVAEConfig)
AutoModel.register(JointRQVAEConfig, JointRQVAE)
