//! Text of others on its way to a person: a terminal, a log line, a spreadsheet.

use std::borrow::Cow;

/// Whether a character may be shown as it is: neither control (C0, C1, escapes) nor one that changes the direction or the
/// order in which others are shown (Unicode Bidirectional Algorithm, UAX #9 §2), nor invisible.
pub fn is_printable(letter: char) -> bool {
    !letter.is_control()
        && !matches!(letter, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{61c}')
}

/// Text with what is not printable written as an escape: `\x1b`, `\n`, `\u{202e}`.
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

/// A name or version of a host is not longer, in bytes (a domain name, RFC 1035 §2.3.4).
pub const LABEL_BYTES_MAX: usize = 255;

/// Text as the label of a host takes it: printable, and cut where it is too long.
pub fn label(text: &str) -> String {
    let mut label = printable(text).into_owned();
    label.truncate(label.floor_char_boundary(LABEL_BYTES_MAX));
    label
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
