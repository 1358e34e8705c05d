"""The playground: change one belief and watch what follows.

Nothing here knows of widgets: `search` finds names, `wish` says what is to be believed, `known` asks the agent,
`answers` asks language models, `session` carries edits out, undoes and keeps them, `show` draws all of it as HTML.
`beliefedit.widgets` puts them on a page.
"""
