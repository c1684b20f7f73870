//! Lines of lists. Foreign text cannot move the terminal's cursor, become another cell, or be a formula.

use vedette_wire::text::{cell, json_printable};

/// A value as a JSON line.
pub(super) fn json_line(value: &impl serde::Serialize) -> String {
    json_printable(serde_json::to_string(value).expect("rows serialize")) + "\n"
}

/// Cells as a CSV line (RFC 4180).
pub(super) fn csv_line(cells: &[&str]) -> String {
    let quoted = |text: &&str| {
        let shown = cell(text);
        if shown.contains(['"', ',']) { format!("\"{}\"", shown.replace('"', "\"\"")) } else { shown.into_owned() }
    };
    cells.iter().map(quoted).collect::<Vec<_>>().join(",") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_line_of_as_many_cells() {
        assert_eq!(csv_line(&["a", "b\"c,d", "=1\nx", ""]), "a,\"b\"\"c,d\",'=1\\nx,\n");
        assert_eq!(json_line(&"a\u{9b}\n"), "\"a\\u009b\\n\"\n");
    }
}
