#include "child_processes.h"

#include <signal.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

extern char** environ;

namespace volley::cli {

ChildProcesses::~ChildProcesses() {
  signal_all(SIGKILL);
  for (Child& child : children_) {
    if (child.running) ::waitpid(child.pid, nullptr, 0);
  }
}

Status ChildProcesses::start(const std::string& name, const std::vector<std::string>& arguments) {
  std::vector<char*> argv;
  std::string program = "volley";
  argv.push_back(program.data());
  std::vector<std::string> copies = arguments;
  for (std::string& copy : copies) argv.push_back(copy.data());
  argv.push_back(nullptr);

  // The parent waits for signals with them blocked; a child starts with none blocked.
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t none;
  sigemptyset(&none);
  posix_spawnattr_setsigmask(&attributes, &none);
  // A group of its own, so that the terminal's Ctrl-C reaches the parent alone, which then stops in
  // order.
  posix_spawnattr_setpgroup(&attributes, 0);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETPGROUP);
  pid_t pid = -1;
  const int error =
      ::posix_spawn(&pid, "/proc/self/exe", nullptr, &attributes, argv.data(), environ);
  posix_spawnattr_destroy(&attributes);
  if (error != 0) return unavailable("cannot start {}: {}", name, errno_text(error));
  UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!pidfd) {
    const int reason = errno;
    ::kill(pid, SIGKILL);
    ::waitpid(pid, nullptr, 0);
    return unavailable("cannot watch {}: {}", name, errno_text(reason));
  }
  children_.push_back({.name = name, .pid = pid, .pidfd = std::move(pidfd)});
  return ok_status();
}

void ChildProcesses::signal_all(int signal) {
  for (const Child& child : children_) {
    if (child.running) ::kill(child.pid, signal);
  }
}

std::optional<ChildProcesses::Ended> ChildProcesses::reap() {
  for (Child& child : children_) {
    if (!child.running) continue;
    int status = 0;
    if (::waitpid(child.pid, &status, WNOHANG) != child.pid) continue;
    child.running = false;
    if (WIFEXITED(status)) {
      return Ended{.name = child.name,
                   .how = fmt::format("exit code {}", WEXITSTATUS(status)),
                   .clean = WEXITSTATUS(status) == 0};
    }
    return Ended{.name = child.name, .how = fmt::format("killed by signal {}", WTERMSIG(status))};
  }
  return std::nullopt;
}

size_t ChildProcesses::running_count() const {
  size_t count = 0;
  for (const Child& child : children_) count += child.running ? 1 : 0;
  return count;
}

std::vector<int> ChildProcesses::watch() const {
  std::vector<int> fds;
  for (const Child& child : children_) {
    if (child.running) fds.push_back(child.pidfd.get());
  }
  return fds;
}

Status end_with_parent(pid_t parent) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  // The parent may have died between the start of this process and the line above.
  if (::getppid() != parent) return failed_precondition("the parent process {} is gone", parent);
  return ok_status();
}

}  // namespace volley::cli
