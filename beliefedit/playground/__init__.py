"""The playground: change one belief and see which other beliefs change, on a page or as a library.

`search` finds names, `agent_view` queries the Bayesian agent, `snapshot` queries language models
and holds the values shown for a request, `session` applies, undoes and stores edits, `html` renders
the page, `files` opens runs and saves sessions. Only `controls` and `app` use widgets.
"""
