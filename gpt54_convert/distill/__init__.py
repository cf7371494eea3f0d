"""A small student out of a large teacher: which weights it begins with, and how it is trained.

`propose` writes a map (`mapping`, one TOML file) of where every weight comes from, `student` applies it,
`training` trains the result beside its teacher.
"""
