//! An agent that reaches its hub through a real nginx, which ends TLS and restarts when it likes.

use std::net::SocketAddr;

use anyhow::Result;
use nowconnect_testkit::http;
use nowconnect_testkit::lab::Lab;
use nowconnect_testkit::pattern::Pattern;
use nowconnect_testkit::process::Process;
use nowconnect_testkit::target::Target;
use nowconnect_testkit::transfer::{Transfer, echo};
use nowconnect_testkit::wait::until;
use nowconnect_testkit::{ports, program};
use tokio::net::TcpStream;
use tokio::process::Command;

async fn nginx(lab: &Lab, listen: SocketAddr, hub: SocketAddr) -> Result<Process> {
    let dir = lab.dir().display();
    let config = format!(
        "daemon off; master_process off; pid {dir}/nginx.pid; error_log stderr;\n\
         events {{}}\n\
         http {{\n\
           access_log off; client_body_temp_path {dir}/nginx-body; proxy_temp_path {dir}/nginx-proxy;\n\
           fastcgi_temp_path {dir}/nginx-f; uwsgi_temp_path {dir}/nginx-u; scgi_temp_path {dir}/nginx-s;\n\
           server {{\n\
             listen {listen} ssl; ssl_certificate {dir}/server.crt; ssl_certificate_key {dir}/server.key;\n\
             location = /tunnel {{\n\
               proxy_pass http://{hub}; proxy_http_version 1.1; proxy_buffering off;\n\
               proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection \"upgrade\";\n\
               proxy_set_header Host $host; proxy_set_header X-Forwarded-For $remote_addr;\n\
               proxy_read_timeout 1h; proxy_send_timeout 1h;\n\
             }}\n\
             location / {{ return 404; }}\n\
           }}\n\
         }}\n"
    );
    let config = lab.write("nginx.conf", &config)?;
    let mut command = Command::new(program::find("nginx", "nginx-light")?);
    let mut nginx = Process::spawn("nginx", command.args(["-c", &config]), lab.dir())?;
    let up = until("nginx to listen", async || {
        Ok(TcpStream::connect(listen).await?)
    });
    nginx.while_alive(up).await?;
    Ok(nginx)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flows_survive_a_restart_of_the_ingress() -> Result<()> {
    let lab = Lab::new(env!("CARGO_BIN_EXE_nowconnect"))?;
    lab.certificates()?;
    let (server, bulk) = (Target::echo().await?, Target::bulk().await?);
    let connectors = [("echo", server.addr()), ("bulk", bulk.addr())];
    let hub = lab.hub_for(&connectors).start().await?;
    let listen = ports::local(ports::reserve()?);
    let mut ingress = nginx(&lab, listen, hub.tunnel_addr()?).await?;
    let agent = lab
        .agent_for(&connectors)
        .url(&format!("wss://localhost:{}/tunnel", listen.port()));
    let ca = lab.path("ca.pem").display().to_string();
    let agent = agent.env("NC_CA_BUNDLE", &ca).start().await?;

    let mut client = hub.connect("echo").await?;
    echo(&mut client, Pattern(1), 0, 100_000).await?;
    let transfer = Transfer {
        stream: 2,
        up: 10_000_000,
        down: 10_000_000,
    };
    let running = tokio::spawn(transfer.run(hub.connect("bulk").await?));
    bulk.wait_accepted(1).await?;
    ingress.kill().await?;
    hub.log().wait_event("agent_disconnected").await?;
    let _ingress = nginx(&lab, listen, hub.tunnel_addr()?).await?;
    echo(&mut client, Pattern(1), 100_000, 100_000).await?;
    running.await??;
    assert_eq!(http::get(agent.health_addr(), "/readyz").await?.status, 200);
    Ok(())
}
