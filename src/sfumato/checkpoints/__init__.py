"""Model folders on disk: `native` is sfumato's own form, safetensors and JSON, nothing that can run code."""
