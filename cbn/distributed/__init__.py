"""Batch norm of batches that several processes hold; import the module you want: mpi or dask."""
