"""What dataset plugins share: the data folder, downloads, photographs and the HDF5 file that runs read."""
