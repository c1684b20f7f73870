//! Service control: the process registers with the service control manager if that started it.

use parking_lot::Mutex;
use std::{ffi::OsString, sync::OnceLock, time::Duration};
use tokio::sync::watch;
use windows_service::{
    define_windows_service,
    service::{ServiceControl, ServiceControlAccept, ServiceExitCode, ServiceState, ServiceStatus, ServiceType},
    service_control_handler::{self, ServiceControlHandlerResult, ServiceStatusHandle},
    service_dispatcher,
};

/// Name of the service.
const NAME: &str = "Vedette";
/// Time that the manager allows for a stop.
const STOP_TIME: Duration = Duration::from_secs(15);

/// What the service does.
static SERVICE: Mutex<Option<Box<dyn FnOnce() -> bool + Send>>> = Mutex::new(None);
static HANDLE: OnceLock<ServiceStatusHandle> = OnceLock::new();
static STOP: OnceLock<watch::Sender<bool>> = OnceLock::new();

fn stop() -> &'static watch::Sender<bool> {
    STOP.get_or_init(|| watch::Sender::new(false))
}

/// Runs a service: under the service control manager if that started the process, or else as a process like others.
///
/// # Errors
/// Those of the service.
///
/// # Panics
/// The manager ends the process's main thread before the service has run.
pub fn run<E: Send + 'static>(service: impl FnOnce() -> Result<(), E> + Send + 'static) -> Result<(), E> {
    let (sender, result) = std::sync::mpsc::sync_channel(1);
    let work = move || {
        let done = service();
        let succeeded = done.is_ok();
        drop(sender.send(done));
        succeeded
    };
    *SERVICE.lock() = Some(Box::new(work));
    if service_dispatcher::start(NAME, ffi_main).is_err()
        && let Some(work) = SERVICE.lock().take()
    {
        // A console started the process.
        work();
    }
    result.recv().expect("the service ran")
}

define_windows_service!(ffi_main, main);

fn main(_arguments: Vec<OsString>) {
    let handler = |control| match control {
        ServiceControl::Stop | ServiceControl::Shutdown | ServiceControl::Preshutdown => {
            stopping();
            stop().send_replace(true);
            ServiceControlHandlerResult::NoError
        }
        ServiceControl::Interrogate => ServiceControlHandlerResult::NoError,
        _ => ServiceControlHandlerResult::NotImplemented,
    };
    match service_control_handler::register(NAME, handler) {
        Ok(handle) => drop(HANDLE.set(handle)),
        // The manager ends the process.
        Err(err) => return tracing::error!(error = %err, "the service control manager refuses the service"),
    }
    report(ServiceState::StartPending, 0);
    let work = SERVICE.lock().take();
    let succeeded = work.is_some_and(|work| work());
    report(ServiceState::Stopped, u32::from(!succeeded));
}

/// Tells the manager the state; does nothing in a console.
fn report(state: ServiceState, exit_code: u32) {
    let Some(handle) = HANDLE.get() else { return };
    let controls_accepted = match state {
        ServiceState::Running | ServiceState::StartPending => {
            ServiceControlAccept::STOP | ServiceControlAccept::SHUTDOWN | ServiceControlAccept::PRESHUTDOWN
        }
        _ => ServiceControlAccept::empty(),
    };
    let status = ServiceStatus {
        service_type: ServiceType::OWN_PROCESS,
        current_state: state,
        controls_accepted,
        exit_code: if exit_code == 0 { ServiceExitCode::NO_ERROR } else { ServiceExitCode::ServiceSpecific(exit_code) },
        checkpoint: 0,
        wait_hint: if state == ServiceState::Running { Duration::ZERO } else { STOP_TIME },
        process_id: None,
    };
    if let Err(err) = handle.set_service_status(status) {
        tracing::warn!(error = %err, "the service control manager refuses the service's state");
    }
}

/// Reports that the service works.
pub fn ready() {
    report(ServiceState::Running, 0);
}

/// Reports that the service is about to end.
pub fn stopping() {
    report(ServiceState::StopPending, 0);
}

/// Interval at which the supervisor expects signs of life: the service control manager expects none.
pub fn watchdog() -> Option<Duration> {
    None
}

/// Nothing to do.
pub fn feed_watchdog() {}

/// Waits until the manager stops the service; for ever in a console.
pub(super) async fn stopped() {
    // The sender is static.
    drop(stop().subscribe().wait_for(|stop| *stop).await);
}
