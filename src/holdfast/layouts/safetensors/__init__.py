"""Files in the safetensors format: headers, writing from live tensors, reading into memory."""
