"""Text: captions, conditions on fields, tokenizers."""
