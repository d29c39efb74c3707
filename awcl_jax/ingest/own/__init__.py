"""Your own scans as a TFDS dataset: image files, videos and DICOM, listed in a table or found in a folder.

listing (manifest, folder)   the files and their labels -> `Row`
plan                         ids, labels and split of each -> `Item`, several of which form a `Job`
chunks                       processes decode the jobs (images, videos, dicom) into chunks that survive a kill
builder                      copies the chunks' records, unchanged, into the shards of a dataset

Two rules hold everywhere: only one picture is in memory at a time, and nothing that is written contains a file name.
"""
