"""Training crops from paired folders of volumes."""

import os

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # albumentations asks the package index for news when imported
