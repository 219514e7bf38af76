"""Turns files into tensors: images and labels of a data set, wherever they come from."""
