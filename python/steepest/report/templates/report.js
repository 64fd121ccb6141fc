(function () {
  var root = document.documentElement, button = document.getElementById("theme");
  var prefers = window.matchMedia("(prefers-color-scheme: dark)");
  function dark() { var chosen = root.dataset.theme; return chosen ? chosen === "dark" : prefers.matches; }
  function name() { button.textContent = dark() ? "Light" : "Dark"; }
  button.hidden = false;
  button.addEventListener("click", function () { root.dataset.theme = dark() ? "light" : "dark"; name(); });
  prefers.addEventListener("change", name);
  name();
})();
