"""What makes views of samples: one file an executor, for one modality each."""
