//! `/proc/PID/stat` (proc(5)): `812 (nginx: worker) S 1 812 812 0 -1 4194560 …`, 52 fields.
//!
//! The name is in parentheses and may contain spaces and parentheses: it ends at the last `)`.

/// The fields that are used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stat {
    /// Field 2.
    pub(super) name: Box<str>,
    /// Field 3.
    pub(super) state: char,
    /// Field 4.
    pub(super) ppid: u32,
    /// Field 6.
    pub(super) session: u32,
    /// Field 9 has PF_KTHREAD (include/linux/sched.h).
    pub(super) kernel: bool,
    /// Field 22, clock ticks since boot.
    pub(super) start_ticks: u64,
    /// Hash of fields 26 to 28 and 45 to 51, the memory layout; changes with every exec.
    layout: u64,
    /// Field 26 is 1: the memory layout is hidden by ptrace(2) (fs/proc/array.c).
    masked: bool,
}

const PF_KTHREAD: u64 = 0x0020_0000;

impl Stat {
    /// Parses a stat line; absent if it is none.
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        let open = text.iter().position(|byte| *byte == b'(')?;
        let close = text.iter().rposition(|byte| *byte == b')')?;
        let name = String::from_utf8_lossy(text.get(open + 1..close)?).into_owned().into_boxed_str();
        let rest = std::str::from_utf8(text.get(close + 2..)?).ok()?;
        let (mut ppid, mut session, mut flags, mut start_ticks, mut layout) = (None, None, None, None, 0_u64);
        let (mut state, mut masked) = (None, false);
        // The first of `rest` is field 3.
        for (field, word) in (3..).zip(rest.split_ascii_whitespace()) {
            match field {
                3 => state = word.chars().next(),
                4 => ppid = word.parse().ok(),
                // Negative inside a foreign pid namespace.
                6 => session = Some(word.parse().unwrap_or(0)),
                9 => flags = word.parse::<u64>().ok(),
                22 => start_ticks = word.parse().ok(),
                26 if word == "1" => masked = true,
                26..=28 | 45..=51 => layout = mix(layout, word.parse().unwrap_or(0)),
                _ => {}
            }
        }
        Some(Self {
            name,
            state: state?,
            ppid: ppid?,
            session: session?,
            kernel: flags? & PF_KTHREAD != 0,
            start_ticks: start_ticks?,
            layout,
            masked,
        })
    }

    /// Whether the memory layout is hidden.
    pub(super) fn is_masked(&self) -> bool {
        self.masked
    }

    /// Sets another value that changes with an exec.
    pub(super) fn set_layout(&mut self, bytes: &[u8]) {
        self.layout = bytes.iter().fold(0, |hash, byte| mix(hash, u64::from(*byte)));
    }

    /// Whether the pid was not reused.
    pub(super) fn is_same_process(&self, other: &Self) -> bool {
        self.start_ticks == other.start_ticks
    }

    /// Whether nothing reportable can have changed. The state changes all the time and is ignored.
    pub(super) fn looks_the_same(&self, other: &Self) -> bool {
        (&self.name, self.ppid, self.session, self.layout) == (&other.name, other.ppid, other.session, other.layout)
    }
}

/// A step of FNV-1a on words.
fn mix(hash: u64, word: u64) -> u64 {
    (hash ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(17)
}
