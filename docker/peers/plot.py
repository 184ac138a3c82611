"""A plot of rates as SVG: one bar for each system, its range as a line. Pure: numbers in, text out."""

from xml.sax.saxutils import escape

WIDTH, LEFT, RIGHT, TOP, STEP, BAR = 760, 230, 90, 54, 30, 18
FOREBAY, PEER, INK, GRID = "#b7410e", "#7a8b99", "#24292f", "#d0d7de"


def bars(title, subtitle, rows):
    """`rows`: name, median, least, most, whether it is Forebay; the longest bar fills the width."""
    rows = [row for row in rows if row[1]]
    height = TOP + STEP * len(rows) + 34
    most = max((row[3] for row in rows), default=1)
    step = tick(most)
    scale = (WIDTH - LEFT - RIGHT) / most
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="13" fill="{INK}">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',  # a dark page would swallow the ink
        f'<text x="12" y="22" font-size="16" font-weight="bold">{escape(title)}</text>',
        f'<text x="12" y="40" font-size="12">{escape(subtitle)}</text>',
    ]
    bottom = TOP + STEP * len(rows)
    for mark in range(0, int(most) + 1, step):
        x = LEFT + mark * scale
        parts.append(f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{bottom}" stroke="{GRID}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" font-size="11" text-anchor="middle">{mark:,}</text>')
    for place, (name, median, least, largest, ours) in enumerate(rows):
        y = TOP + STEP * place + (STEP - BAR) / 2
        middle = y + BAR / 2
        end = LEFT + largest * scale
        parts += [
            f'<text x="{LEFT - 8}" y="{middle + 4.5}" text-anchor="end"'
            f'{" font-weight=" + chr(34) + "bold" + chr(34) if ours else ""}>{escape(name)}</text>',
            f'<rect x="{LEFT}" y="{y}" width="{median * scale:.1f}" height="{BAR}" fill="{FOREBAY if ours else PEER}"/>',
            f'<line x1="{LEFT + least * scale:.1f}" y1="{middle}" x2="{end:.1f}" y2="{middle}" stroke="{INK}"/>',
            f'<text x="{end + 6:.1f}" y="{middle + 4.5}">{median:,.0f}</text>',
        ]
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


def tick(most):
    """A round distance between marks: four to nine of them."""
    step = 1
    while most / step > 9:
        step = step * 2 if str(step)[0] == "1" else (step * 5 // 2 if str(step)[0] == "2" else step * 2)
    return step
