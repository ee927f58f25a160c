import io
import re

from rich.console import Console

from lifelong.records import DomainLoss, ExpansionReport, TrainPoint
from lifelong.report.progress import RichObserver, clock


def drive(observer):
    observer.run_started("r", ["wiki", "news"], [1000, 1000])
    observer.phase_started("prepare", 0)
    observer.phase_started("generate", 1000)
    observer.advanced("generate", 5, 1000)
    observer.expanded(ExpansionReport("llama", "exact", {"layers": 2}, {"layers": 3}, 1, 2, 1e-14))
    observer.stage_started(1, {"layers": 3, "hidden_size": 8, "heads": 2}, 1_234_567)
    observer.phase_started("train", 1000)
    for step in (1, 2):
        observer.stepped(TrainPoint("train", step, 500 * step, 4.321, 4.321, 0.123, 0.45, 1e-3))
    observer.evaluated(1, [DomainLoss("wiki", 10.0, 5, 20)])
    observer.close()


def test_the_live_display_fits_80_columns():
    out = io.StringIO()
    drive(RichObserver(Console(file=out, force_terminal=True, width=80)))
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue())
    lines = [line.rstrip() for line in re.split(r"[\r\n]", text)]
    assert max(map(len, lines)) <= 80
    (bar, *_) = [line for line in lines if "tok/s" in line and "alpha" in line]
    assert re.search(r"train .* loss 4.321 kl 0.123 alpha 0.45 eta \d", bar)
    assert any("stage 2/2 eta" in line for line in lines)
    assert "layers 2 > 3; logits differ by 1.0e-14" in text


def test_bytes_are_counted_while_a_corpus_is_prepared():
    out = io.StringIO()
    observer = RichObserver(Console(file=out, force_terminal=True, width=80))
    observer.run_started("r", ["wiki"], [1000])
    observer.phase_started("prepare", 0)
    observer.text_read("wiki", 12_345_678)
    observer.progress.refresh()
    observer.close()
    assert re.search(r"wiki: 11\.8 MiB of text, \d\S* \w*B/s", out.getvalue())


def test_without_a_terminal_there_are_plain_lines():
    out = io.StringIO()
    drive(RichObserver(Console(file=out, force_terminal=False, width=80)))
    text = out.getvalue()
    assert "\x1b" not in text
    assert "held-out perplexity: wiki 7.389" in text
    assert text.count("alpha") <= 2


def test_clock():
    assert clock(75) == "1:15"
    assert clock(3700) == "1h01"
    assert clock(-3) == "0:00"
