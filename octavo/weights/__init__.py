"""Where tensors come from: safetensors, pickle archives read weights-only, dummies, hubs."""
