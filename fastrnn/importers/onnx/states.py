"""States that the caller threads by hand, paired (follows)."""


def pair(graph, given):
    return graph
