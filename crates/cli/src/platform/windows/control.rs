//! The service control manager, when it is what has started this process.

use std::ffi::OsStr;
use std::sync::OnceLock;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use windows_service::service::{
    ServiceControl, ServiceControlAccept, ServiceExitCode, ServiceState, ServiceStatus, ServiceType,
};
use windows_service::service_control_handler::{
    ServiceControlHandlerResult, ServiceStatusHandle, register,
};

use crate::logging::Rolling;
use crate::platform::Request;

/// What the service control manager asks for.
pub(super) type Controls = Receiver<Request>;

/// Requests that may wait; one of each kind is as good as many.
const WAITING: usize = 8;
/// How long the manager waits for the end of a start or a stop before it calls the service hung; more
/// than an agent's flows get to end.
const PENDING: Duration = Duration::from_secs(20);

static SERVICE: OnceLock<Running> = OnceLock::new();

/// This process as a service.
struct Running {
    status: ServiceStatusHandle,
    /// Held here and not by the handler, which the library gives up while it may still be called.
    requests: Sender<Request>,
    controls: Mutex<Option<Controls>>,
    log: Rolling,
}

/// Tells the manager that this process is the service `name`, which starts and logs to `log`.
///
/// # Errors
/// This process is no service of that name, or told so before.
pub(super) fn announce(name: &OsStr, log: Rolling) -> windows_service::Result<()> {
    let (requests, controls) = channel(WAITING);
    let status = register(name, on_control)?;
    let running = Running {
        status,
        requests,
        controls: Mutex::new(Some(controls)),
        log,
    };
    // There is one service per process.
    let _ = SERVICE.set(running);
    tell(ServiceState::StartPending, ServiceExitCode::NO_ERROR);
    Ok(())
}

fn on_control(control: ServiceControl) -> ServiceControlHandlerResult {
    let request = match control {
        ServiceControl::Stop | ServiceControl::Preshutdown => Request::Stop,
        ServiceControl::ParamChange => Request::Reload,
        ServiceControl::Interrogate => return ServiceControlHandlerResult::NoError,
        _ => return ServiceControlHandlerResult::NotImplemented,
    };
    if let Some(service) = SERVICE.get() {
        // A full queue holds the same request already.
        let _ = service.requests.try_send(request);
    }
    ServiceControlHandlerResult::NoError
}

/// The requests of the manager, for the first who asks; `None` when this process is no service.
pub(super) fn controls() -> Option<Controls> {
    SERVICE.get()?.controls.lock().take()
}

/// The log of the service.
pub(super) fn log() -> Option<Rolling> {
    SERVICE.get().map(|service| service.log.clone())
}

/// Tells the manager that the service has ended: 0, or what a process would end with.
pub(super) fn stopped(code: u32) {
    let code = match code {
        0 => ServiceExitCode::NO_ERROR,
        code => ServiceExitCode::ServiceSpecific(code),
    };
    tell(ServiceState::Stopped, code);
}

fn tell(state: ServiceState, exit_code: ServiceExitCode) {
    let Some(service) = SERVICE.get() else {
        return;
    };
    let pending = matches!(
        state,
        ServiceState::StartPending | ServiceState::StopPending
    );
    let runs = state == ServiceState::Running;
    let told = service.status.set_service_status(ServiceStatus {
        service_type: ServiceType::OWN_PROCESS,
        current_state: state,
        controls_accepted: match runs {
            true => {
                ServiceControlAccept::STOP
                    | ServiceControlAccept::PRESHUTDOWN
                    | ServiceControlAccept::PARAM_CHANGE
            }
            false => ServiceControlAccept::empty(),
        },
        exit_code,
        checkpoint: u32::from(pending),
        wait_hint: if pending { PENDING } else { Duration::ZERO },
        process_id: None,
    });
    if let Err(error) = told {
        tracing::warn!(event = "service_manager_not_told", ?state, error = %error);
    }
}

/// Tells whoever supervises the process how far it is; nothing happens where nobody does.
pub(crate) mod supervisor {
    use super::{ServiceExitCode, ServiceState, tell};

    /// The service does its work, also after a reload.
    pub(crate) fn ready() {
        tell(ServiceState::Running, ServiceExitCode::NO_ERROR);
    }

    /// The configuration is being read again; that is nothing to the service control manager.
    pub(crate) fn reloading() {}

    /// The service is on its way out.
    pub(crate) fn stopping() {
        tell(ServiceState::StopPending, ServiceExitCode::NO_ERROR);
    }
}
