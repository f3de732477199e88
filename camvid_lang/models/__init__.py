"""The method: encoders, text embeddings, the exact cosine head, the upsampler, the four models."""
