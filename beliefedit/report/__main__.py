"""`python -m beliefedit.report NOTEBOOK`: write one executed notebook as HTML."""

from beliefedit.report.pages import main

main()
