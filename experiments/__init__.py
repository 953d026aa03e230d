"""Measured comparisons, a module each, named after its figure: `python -m experiments NAME`.

Each module has a function `measure`. Its `root` is the folder of slices, its `weights` the name of
shipped ones. Where it takes a `file`, it stores every result there at once and yields it, and does
not measure again what the file holds; otherwise it returns all results. They end up in
`data/results/<module>.json`, where notebooks read them with `pretrained.results`.
"""
