// Before the first paint, so that nothing flashes: the colours that were chosen here, or else the system's.
{
  const names = ["auto", "light", "dark"];
  const words = { auto: "Auto", light: "Light", dark: "Dark" };

  const read = () => {
    try {
      return localStorage.getItem("darkroom-theme") ?? "auto";
    } catch {
      return "auto";
    }
  };

  const apply = (name) => {
    document.documentElement.dataset.theme = name;
    const button = document.getElementById("theme-button");
    if (button) {
      document.getElementById("theme-text").textContent = words[name];
      button.setAttribute("aria-label", `Colours: ${words[name]}. Change`);
    }
  };

  let chosen = names.includes(read()) ? read() : "auto";
  apply(chosen);
  document.addEventListener("DOMContentLoaded", () => {
    apply(chosen);
    document.getElementById("theme-button").addEventListener("click", () => {
      chosen = names[(names.indexOf(chosen) + 1) % names.length];
      apply(chosen);
      try {
        localStorage.setItem("darkroom-theme", chosen);
      } catch {
        // The choice lasts until the page is left.
      }
    });
  });
}
