//! Named points at which a test has the agent die, as by SIGKILL. Without the feature `failpoints` there are none.

/// The names, in the order in which a record passes them.
#[cfg(feature = "failpoints")]
pub const NAMES: [&str; 8] = ["read", "batch", "seal", "commit", "committed", "post", "landed", "deleted"];

#[cfg(feature = "failpoints")]
static ARMED: std::sync::Mutex<Option<(String, u64)>> = std::sync::Mutex::new(None);

/// Die when a point is reached for the n-th time, counted from 1.
///
/// # Errors
/// The names, where it is none of them.
#[cfg(feature = "failpoints")]
pub fn arm(name: &str, nth: u64) -> Result<(), String> {
    if !NAMES.contains(&name) {
        return Err(format!("{name:?} is no failpoint; they are {}", NAMES.join(", ")));
    }
    *ARMED.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some((name.to_owned(), nth));
    Ok(())
}

/// A point is reached.
#[cfg(feature = "failpoints")]
pub(crate) fn reached(name: &str) {
    let mut armed = ARMED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some((point, left)) = armed.as_mut()
        && point == name
    {
        *left = left.saturating_sub(1);
        if *left == 0 {
            eprintln!("failpoint {name}");
            drop(rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL));
        }
    }
}

#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub(crate) fn reached(_name: &str) {}
