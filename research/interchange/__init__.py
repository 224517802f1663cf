"""Interchange with Hugging Face's safetensors layout: a family of models a file, numpy in and out, no pickle."""
