//! The programs print their usage; generated lines have the documented length.

use std::process::Command;
use vedette_benches::numbered;

#[test]
fn what_is_not_known_is_refused() {
    for program in [env!("CARGO_BIN_EXE_vedette-bench"), env!("CARGO_BIN_EXE_vedette-faults")] {
        let output = Command::new(program).args(["--nonsense", "x"]).output().expect("runs");
        assert!(!output.status.success());
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(message.contains("usage") || message.contains("tests/faults/run"), "{message}");
    }
}

#[test]
fn numbered_lines_have_200_to_250_bytes() {
    for number in (0..100_000).step_by(997) {
        let length = numbered::line(number).len();
        assert!((200..=250).contains(&length), "{length}");
    }
}
