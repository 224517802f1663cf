"""What stands beside BERT's tensors in a Hugging Face directory: its tokenizer, and the names of classes."""

from typing import Any

from experiments.interchange import tokenizer_documents
from research.data import library_file
from research.interchange import files


def beside(config: Any, splits: Any) -> dict[str, Any]:
  """JSON content by file name. A classifier's classes go by their names."""
  # No token pads: what is padded is masked, and whatever stands there is trained like all others.
  entries: dict[str, Any] = {"pad_token_id": None}
  if config.task == "classify":
    names = dict(enumerate(splits.train.schema.class_names))
    entries |= {"id2label": names, "label2id": {name: place for place, name in names.items()}}
  documents = {files.CONFIG: entries}
  tokenizer = splits.tokenizer
  if (description := library_file.to_library(tokenizer.content(), masked=True)) is not None:
    tokens = {"mask_token": library_file.MASK, "cls_token": library_file.FIRST}
    tokens |= dict.fromkeys(("eos_token", "pad_token"), tokenizer.end_token)
    documents |= tokenizer_documents(config, description, tokens)
  return documents
