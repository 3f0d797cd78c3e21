"""The work behind the audio modality: decoding, windows, padding."""
