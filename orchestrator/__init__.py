"""The command line, the grid file, the plan, the controller on Ray, and the reports."""
