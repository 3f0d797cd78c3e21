"""Images: decoding and cropping on the host, augmentation on the device."""
