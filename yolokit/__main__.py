"`python -m yolokit APP name=value ...`"
from .apps.command_line import main

main()
