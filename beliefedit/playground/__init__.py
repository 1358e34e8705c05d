"""The playground: change one belief and see what follows, on a page or as a library.

`search` finds names, `agent_view` asks the agent, `snapshot` asks language models and has all that
is shown of a request, `session` carries edits out, undoes and keeps them, `html` draws, `files`
opens runs and saves sessions. Only `controls` and `app` know of widgets.
"""
