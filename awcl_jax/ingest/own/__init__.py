"""A researcher's own scans as a TFDS dataset: image files, videos and DICOM, listed by a table or found in a folder.

listing (manifest, folder)   which files there are, and what the user says of them -> `Row`
plan                         ids, labels and split of each -> `Item`, a few of which make up a `Job`
chunks                       processes decode the jobs (images, videos, dicom) into chunks that outlive a kill
builder                      the chunks' records, unchanged, as the shards of a dataset

Two rules hold everywhere: pictures are never held but one at a time, and nothing that is written carries a file's name.
"""
