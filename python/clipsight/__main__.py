from clipsight.cli import main

main()
