"""Which single weights become zero; each file beside this one is a criterion.

A file has `DESCRIPTION`, `NEEDS` (`nothing`; `energy`: the mean square of each input [in]; `factor`: the
upper Cholesky factor of the inverse of the inputs' second moments [in, in]) and
`sparse(rows [n, in] float32, statistic, pattern) -> rows`, which may change the weights that stay only if it
needs `factor`.  Rows are independent of each other.
"""
