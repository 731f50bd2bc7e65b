"""Opens the tables of a drift report in Evidently, and prints what it finds: the distance of each column, as JSON."""

import json
import sys

import pandas as pd
from evidently import Report
from evidently.presets import DataDriftPreset

reference, window = (pd.read_csv(path) for path in sys.argv[1:])
found = Report([DataDriftPreset()]).run(window, reference).dict()["metrics"]
columns = {one["config"]["column"]: float(one["value"]) for one in found if "column" in one["config"]}
drifted = next(int(one["value"]["count"]) for one in found if "drift_share" in one["config"])
print(json.dumps({"columns": columns, "drifted": drifted}))
