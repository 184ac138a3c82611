# 1234567 as 1,234,567.
function commas(number,    text, head) {
    text = sprintf("%d", number)
    while (match(text, /^[0-9][0-9][0-9][0-9]+/)) {
        head = RLENGTH - 3
        text = substr(text, 1, head) "," substr(text, head + 1)
    }
    return text
}
