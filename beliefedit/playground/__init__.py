"""The playground: change one belief and see what follows, on a page or as a library.

`search` finds names, `agent_view` asks the agent, `model_view` asks language models, `session`
carries edits out, undoes and keeps them, `snapshot` has all that is shown of one, `html` draws it,
`files` opens runs and saves sessions. Only `controls` and `app` know of widgets.
"""
