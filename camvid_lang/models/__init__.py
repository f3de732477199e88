"""The method: encoders, text embeddings, the exact cosine head, the upsampler, the four models.

The names of the encoders are defined here so that settings and reports can use them without
importing torch; `models.encoder` exports them.
"""

TINY = "camvid-tiny"  # an open_clip model that the package ships
RESNET18 = "resnet18"
THESIS_ENCODER = "convnext_base_w_320"
THESIS_WEIGHTS = "laion_aesthetic_s13b_b82k_augreg"
