"""python3 -m unittest discover --start-directory docker/peers"""

import unittest
import xml.etree.ElementTree

import figures
import plot
import process
import report
import safety
from systems import System


def measured(system, round_, rate, **more):
    return {"system": system, "round": round_, "jobs": 1000, "rate": rate, "publish_rate": 500, "cpu_us": 20,
            "broker_us": 30, "memory_mib": 12.5, "others": 0.1, **more}


def described(name, **more):
    return {"name": name, "family": "", "title": name.title(), "broker": "rabbitmq", "confirms": "yes",
            "acks": "late", "prefetch": "200", "setting": "", **more}


def run(measurements, **more):
    names = dict.fromkeys(measurement["system"] for measurement in measurements)
    return {"systems": [described(name) for name in names], "measurements": measurements, "safety": {},
            "left_out": {}, "date": "today", "command": "run.sh", "load": [0.5, 0, 0], "brokers": ["RabbitMQ 4.3"],
            "versions": {"Celery": "5"}, "failed": {},
            "machine": {"processor": "P", "cores": 2, "memory_gib": 8, "kernel": "6"}, **more}


class Ratios(unittest.TestCase):
    def test_a_ratio_is_taken_within_one_round(self):
        rounds = [measured("forebay", 0, 100), measured("slow", 0, 10), measured("slow", 1, 4), measured("forebay", 1, 20)]
        self.assertEqual(figures.ratios(rounds, "slow"), [10, 5])

    def test_a_round_without_both_has_no_ratio(self):
        rounds = [measured("forebay", 0, 100), measured("slow", 1, 10), measured("slow", 0, None)]
        self.assertEqual(figures.ratios(rounds, "slow"), [])

    def test_the_interval_lies_around_the_median_and_is_always_the_same(self):
        values = [8, 9, 10, 11, 30]
        low, high = figures.interval(values)
        self.assertTrue(8 <= low <= 10 <= high <= 30)
        self.assertEqual(figures.interval(values), (low, high))

    def test_two_rounds_have_no_interval(self):
        self.assertIsNone(figures.interval([1, 2]))

    def test_the_best_setting_is_the_one_with_the_highest_median(self):
        rounds = [measured("a", 0, 1), measured("a", 1, 9), measured("b", 0, 6), measured("b", 1, 6), measured("c", 0, 99)]
        self.assertEqual(figures.best_of(["a", "b"], rounds), "b")
        self.assertIsNone(figures.best_of(["x"], rounds))


class Numbers(unittest.TestCase):
    def test_three_digits_are_shown(self):
        shown = [figures.number(value) for value in (None, 0, 0.01234, 1.5, 12.345, 999.4, 1234.5, 45678)]
        self.assertEqual(shown, ["–", "0", "0.0123", "1.50", "12.3", "999", "1,230", "45,700"])


class Tables(unittest.TestCase):
    def setUp(self):
        self.rounds = [measured("forebay", n, 1000 + n) for n in range(3)] + [measured("slow", n, 100) for n in range(3)]

    def test_a_row_has_median_range_and_ratio(self):
        row = figures.row("slow", self.rounds[3:], self.rounds)
        self.assertEqual(row["ratio"], "**10.0** (10.0–10.0)")
        self.assertEqual(row["drain"], "100 (100–100)")
        self.assertEqual(figures.row("forebay", self.rounds[:3], self.rounds)["ratio"], "1")

    def test_what_was_too_quick_to_measure_is_a_dash(self):
        rounds = [measured("slow", 0, None, cpu_us=None)]
        row = figures.row("slow", rounds, rounds)
        self.assertEqual((row["drain"], row["ratio"], row["cpu"]), ("–", "–", "–"))

    def test_every_line_of_the_markdown_has_as_many_cells(self):
        text = report.section(run(self.rounds), "x.svg")
        lines = [line for line in text.splitlines() if line.startswith("|")][:4]
        self.assertEqual({line.count("|") for line in lines}, {len(figures.HEADINGS) + 1})

    def test_what_is_left_out_and_what_else_ran_is_said(self):
        text = report.facts(run(self.rounds, left_out={"taskiq": "no network"}))
        self.assertIn("left out: taskiq: no network", text)
        self.assertIn("10% of the machine", text)

    def test_a_section_replaces_the_one_before_and_nothing_else(self):
        before = f"above\n{report.BEGIN}\nold\n{report.END}\nbelow"
        after = report.put_between(before, f"{report.BEGIN}\nnew\n{report.END}")
        self.assertEqual(after, before.replace("old", "new"))
        with self.assertRaises(ValueError):
            report.put_between("no markers", "x")


class Plot(unittest.TestCase):
    def test_it_is_well_formed_and_the_longest_bar_is_the_fastest(self):
        text = plot.bars("a & b", "<sub>", [("fast", 40_000, 35_000, 41_000, True), ("slow", 400, 390, 410, False)])
        root = xml.etree.ElementTree.fromstring(text)
        bars = [float(rect.get("width")) for rect in root.iter("{http://www.w3.org/2000/svg}rect")][1:]
        self.assertEqual(len(bars), 2)
        self.assertAlmostEqual(bars[0] / bars[1], 100, delta=1)

    def test_marks_are_round_and_few(self):
        self.assertEqual([plot.tick(most) for most in (9, 41_000, 90_000, 150, 1)], [1, 5_000, 10_000, 20, 1])

    def test_nothing_measured_is_an_empty_plot(self):
        xml.etree.ElementTree.fromstring(plot.bars("a", "b", []))


class Words(unittest.TestCase):
    def setUp(self):
        self.system = System("x", "X", "rabbitmq", "peers.x", None, (), (), 1, "", "", "", "")

    def test_what_became_of_the_bad_job(self):
        for good, alive, kept, said in [
            (True, True, {}, "**it is gone**"),
            (True, True, {"peers.x.XQ": 1}, "it is kept: `peers.x.XQ`"),
            (True, True, {"peers.x": 1}, "it is still on its queue: `peers.x`"),
            (False, False, {"peers.x": 2}, "**the worker ends**; **the job behind it does not run**; "
                                           "it is still on its queue: `peers.x`"),
            (False, True, {"peers.x": 1}, "**the job behind it does not run**; **it is gone**"),
        ]:
            self.assertEqual(safety.words(self.system, good, alive, kept), said)


class Proc(unittest.TestCase):
    def test_a_process_may_have_any_name(self):
        rest = "S 10 11 12 0 -1 4194560 1 2 3 4 150 50 30 20 20 0 1 0 5 6 7"
        for name in ("bash", "a) b (c", "x y"):
            stat = process.parse_stat(f"9 ({name}) {rest}")
            self.assertEqual((stat["parent"], stat["session"]), (10, 12))
            self.assertEqual(stat["cpu"], 250 / process.TICKS)


if __name__ == "__main__":
    unittest.main()
