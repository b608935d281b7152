"""Tokenizers: methods that turn images into codes and back; a second stage models the codes."""
