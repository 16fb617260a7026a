"""An empty figure and the panels in it."""

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dipct.figures.labels import wrapped

PANEL_WIDTH, PANEL_HEIGHT = 4.1, 3.7
"""Size of a panel with its title and colour bar, inches."""

FONT_SIZE, TITLE_SIZE = 9.0, 10.0
"""Points."""


def new_figure(width: float, height: float) -> Figure:
    """An empty figure that arranges its panels so that nothing overlaps.

    Args:
        width: inches.
        height: inches.
    """
    figure = Figure(figsize=(width, height), dpi=100, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.set(w_pad=0.08, h_pad=0.08, wspace=0.02, hspace=0.03)  # type: ignore[call-arg]
    return figure


def panel_figure(n_panels: int, n_columns: int) -> tuple[Figure, list[Axes]]:
    """A figure of equal panels, row by row; those of a last row that is not full are wider.

    Args:
        n_panels: how many.
        n_columns: panels in a full row.

    Returns:
        The figure and the axes of its panels.
    """
    n_columns = min(n_columns, n_panels)
    n_full, n_last = divmod(n_panels, n_columns)
    n_rows = n_full + (n_last > 0)
    figure = new_figure(n_columns * PANEL_WIDTH, n_rows * PANEL_HEIGHT + 0.5)
    # Each part is arranged by itself: in one grid of narrow columns, which panels of both widths
    # span, the margins of all of them would add up.
    if n_last == 0:
        parts = [(figure, n_full, n_columns)]
    else:
        upper, lower = figure.subfigures(2, 1, height_ratios=(n_full, 1))
        parts = [(upper, n_full, n_columns), (lower, 1, n_last)]
    axes: list[Axes] = []
    for part, rows, columns in parts:
        axes += part.subplots(rows, columns, squeeze=False).flat
    return figure, axes


def set_title(axes: Axes, title: str, *, width: float = PANEL_WIDTH) -> None:
    """Put a title of one or more lines above a panel.

    Args:
        axes: the panel.
        title: its lines are broken where they are too long.
        width: of the panel, inches.
    """
    # Beside the image the panel holds a colour bar and its label.
    lines = [wrapped(line, 0.75 * width, TITLE_SIZE) for line in title.splitlines()]
    # Names of classes and files are no formulas.
    axes.set_title("\n".join(lines), fontsize=TITLE_SIZE, parse_math=False)


def finish(figure: Figure, title: list[str]) -> Figure:
    """Put a title above all panels, and arrange them for good.

    Args:
        figure: with all its panels drawn.
        title: its lines; long ones are broken.

    Returns:
        The figure.
    """
    width = 0.92 * figure.get_figwidth()
    figure.suptitle(
        "\n".join(wrapped(line, width, TITLE_SIZE + 1) for line in title if line),
        fontsize=TITLE_SIZE + 1,
        parse_math=False,
    )
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
    # The engine starts from where it ended before: left in place, it would move the panels a
    # little each time the figure is drawn. "none" would leave a placeholder of it, for which
    # saving draws twice; None alone would take what the settings of matplotlib say.
    with rc_context({"figure.autolayout": False, "figure.constrained_layout.use": False}):
        figure.set_layout_engine(None)
    return figure


def write_text(axes: Axes, text: str) -> None:
    """Turn a panel into a block of text in letters of equal width."""
    axes.set_axis_off()
    axes.text(
        0.0,
        1.0,
        text,
        transform=axes.transAxes,
        family="monospace",
        fontsize=FONT_SIZE - 1,
        verticalalignment="top",
        linespacing=1.4,
        parse_math=False,
    )
