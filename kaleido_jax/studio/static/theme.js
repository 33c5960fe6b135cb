// Runs before the first paint, so that a chosen theme never flashes. No choice means the system's.
{
  let choice = null;
  try {
    choice = localStorage.getItem("kaleido-studio-theme");
  } catch (error) {
    console.info("no storage, so the theme is the system's", error.name);
  }
  if (choice === "light" || choice === "dark") document.documentElement.dataset.theme = choice;
}
