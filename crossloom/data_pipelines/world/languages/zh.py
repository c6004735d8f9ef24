"""Chinese: no inflection, no spaces; a measure word between number and noun."""

from crossloom.data_pipelines.world.language import Language, Thing

_NOUN = {
    "circle": "圆形",
    "square": "正方形",
    "triangle": "三角形",
    "star": "星形",
    "heart": "心形",
    "moon": "月牙形",
}
_WORD = {
    "red": "红色", "green": "绿色", "blue": "蓝色", "yellow": "黄色", "black": "黑色",
    "white": "白色", "small": "小", "large": "大",
}  # fmt: skip


def phrase(thing: Thing, form: str) -> str:
    """Forms: indef, bare, def, colour."""
    if form == "colour":
        return _WORD[thing.colour]
    if form == "def":
        return _NOUN[thing.shape]
    number = "一个" if form == "indef" else ""
    colour = f"{_WORD[thing.colour]}的" if thing.colour else ""
    return number + colour + _WORD.get(thing.size, "") + _NOUN[thing.shape]


_SIDE = {"left": "左边", "right": "右边", "above": "上面", "below": "下面"}
LANGUAGE = Language(
    code="zh",
    name="Chinese",
    phrase=phrase,
    words={w: (word,) for w, word in {**_NOUN, **_WORD}.items()},
    comma="、",
    last="和",
    finish=lambda s: s,
    patterns={
        "list": "图中有{items}。",
        "exists": "有{a}。",
        "absent": "没有{a:bare}。",
        "is": "{a:def}是{b:colour}的。",
        "larger": "{a:def}比{b:def}大。",
        "q_colour": "{a:def}是什么颜色的？",
        "q_count": "图中有几个图形？",
        "q_exists": "有没有{a:bare}？",
        "q_shape": "哪个图形是{a:colour}的？",
        "q_same": "{a:def}和{b:def}的颜色相同吗？",
        "q_larger": "{a:def}比{b:def}大吗？",
        **{f"relation.{r}": f"{{a}}在{{b}}的{s}。" for r, s in _SIDE.items()},
        **{f"place.{r}": f"{{a:def}}在{{b:def}}的{s}。" for r, s in _SIDE.items()},
        **{f"q_side.{r}": f"{{a:def}}在{{b:def}}的{s}吗？" for r, s in _SIDE.items()},
        "refer.colour": "{a:colour}的图形",
        **{f"refer.{r}": f"{{a:def}}{s}的图形" for r, s in _SIDE.items()},
    },
)
