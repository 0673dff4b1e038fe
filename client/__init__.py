"""A site with data of one modality: local training and posterior sampling."""
