//! Foreign text for people: on a terminal, in a log line, in a spreadsheet.

use std::borrow::Cow;

/// Whether a character is shown as it is: no control character (C0, C1, escapes), none that changes the direction or order of
/// others (Unicode Bidirectional Algorithm, UAX #9 §2), none that is invisible.
pub fn is_printable(letter: char) -> bool {
    !letter.is_control()
        && !matches!(letter, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{61c}' | '\u{ad}'
            | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Replaces unprintable characters by escapes: `\x1b`, `\n`, `\u{202e}`.
pub fn printable(text: &str) -> Cow<'_, str> {
    if text.chars().all(is_printable) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for letter in text.chars() {
        match letter {
            letter if is_printable(letter) => out.push(letter),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            letter if (letter as u32) < 0x80 => out.push_str(&format!("\\x{:02x}", letter as u32)),
            letter => out.push_str(&letter.escape_unicode().to_string()),
        }
    }
    Cow::Owned(out)
}

/// A spreadsheet cell: printable, and never a formula.
pub fn cell(text: &str) -> Cow<'_, str> {
    let shown = printable(text);
    if shown.starts_with(['=', '+', '-', '@']) && shown.parse::<f64>().is_err() {
        return Cow::Owned(format!("'{shown}"));
    }
    shown
}

/// JSON with unprintable characters as `\uXXXX` (RFC 8259 §7), which does not change values. Keeps line ends between values.
pub fn json_printable(json: String) -> String {
    if json.chars().all(|letter| letter == '\n' || is_printable(letter)) {
        return json;
    }
    let mut out = String::with_capacity(json.len() + 64);
    for letter in json.chars() {
        if letter == '\n' || is_printable(letter) {
            out.push(letter);
        } else {
            for unit in letter.encode_utf16(&mut [0; 2]) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    out
}

/// Maximum length in bytes of a host's name or version (a domain name, RFC 1035 §2.3.4).
pub const LABEL_BYTES_MAX: usize = 255;

/// Makes text a host label: printable, and cut to [`LABEL_BYTES_MAX`].
pub fn label(text: &str) -> String {
    let mut label = printable(text).into_owned();
    label.truncate(label.floor_char_boundary(LABEL_BYTES_MAX));
    label
}

/// A label value of OpenMetrics, escaped: backslash, quotation mark, line feed (OpenMetrics 1.0 §5.1).
pub fn metric_label(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_cut_between_characters() {
        assert_eq!(label("web1\n"), "web1\\n");
        assert_eq!(label(&"é".repeat(200)), "é".repeat(127));
    }

    #[test]
    fn json_stays_what_it_says_and_a_cell_is_no_formula() {
        let text = "a\u{202e}b\u{9b}\u{e0001}";
        let json = json_printable(format!("{}\n", serde_json::json!(text)));
        assert!(json.chars().all(|letter| letter == '\n' || is_printable(letter)), "{json}");
        assert_eq!(serde_json::from_str::<String>(&json).expect("JSON"), text);
        assert_eq!((cell("=1+1"), cell("-1.5"), cell("@x\n")), ("'=1+1".into(), "-1.5".into(), "'@x\\n".into()));
    }

    #[test]
    fn what_moves_a_terminal_is_written_as_an_escape() {
        for (text, expected) in [
            ("plain, naïve, 日本", "plain, naïve, 日本"),
            ("\u{1b}[31mred\r\nnext\t", "\\x1b[31mred\\r\\nnext\\t"),
            ("a\u{202e}b\u{9b}31m", "a\\u{202e}b\\u{9b}31m"),
            ("\0\u{7f}", "\\x00\\x7f"),
        ] {
            assert_eq!(printable(text), expected);
        }
    }
}
