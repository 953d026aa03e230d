"""One module for each measured comparison; its result file has the same name.

`python -m experiments NAME` measures one.

Each module has a function `measure`. Its `root` is the folder of slices, its `weights` the name of
shipped ones. Where it takes a `file`, it stores every result there at once and yields it, and does
not measure again what the file holds; otherwise it returns all results. They end up in
`data/results/<module>.json`, where notebooks read them with `pretrained.results`.
"""
